"""Templates of questions. A dataset draws one of its templates for every row and epoch."""

from __future__ import annotations

REC = (
    "Where in the image do you see <expr>?",
    "Find <expr> and give its place.",
    "Show me <expr> in this image.",
    "Locate <expr>.",
    "I am looking for <expr>. Which part of the image do I look at?",
    "Give the box that holds <expr>.",
    "Please mark <expr>.",
    "In this image, what are the coordinates of <expr>?",
    "Point out <expr> for me.",
    "Which region shows <expr>?",
)
"""Questions for the position of an expression (REC)."""
REG = (
    "What is at <box>? Describe it so that it cannot be confused with anything else.",
    "Which thing is meant by <box>?",
    "Refer to the object in <box> in a few words.",
    "Say which object lies in <box>.",
    "What would you call the object in <box>, so that it is not confused with another one?",
    "Give an expression for the region <box>.",
    "Name the object at <box> unambiguously.",
    "What makes the object in <box> different from the others? Answer by a short expression.",
)
"""Questions for an expression for a region (REG)."""
GC = (
    "What does <box> show?",
    "Describe the region <box>.",
    "What can be seen in <box>?",
    "Give a caption for <box>.",
    "What is in this part of the image: <box>?",
    "Say briefly what the area <box> contains.",
    "Look at <box>. What is there?",
    "Tell me about the content of <box>.",
)
"""Questions for a caption of a region (GC)."""
RES = (
    "Segment <expr>.",
    "Outline <expr> in this image.",
    "Which pixels belong to <expr>?",
    "Give the mask of <expr>.",
    "Where do you see <expr>? Show the shape.",
    "Please delineate <expr>.",
    "Mark all of <expr>.",
    "Find <expr> and cut it out.",
)
"""Questions for the mask of an expression (RES)."""
CAPTION = (
    "Describe this image.",
    "What does this image show?",
    "Give a caption for the image.",
    "Say in one sentence what can be seen.",
    "What is going on here?",
    "Write a short description of this picture.",
    "Summarize the image in a few words.",
    "Tell me what you see.",
)
"""Questions for a caption of the image."""
FLICKR = (
    "Describe this image, and give the place of each thing that you name.",
    "What does the image show? Add the box of everything you mention.",
    "Write a caption with the location of its objects.",
    "Tell me what you see and where it is.",
    "Caption the picture; after each object put its coordinates.",
    "Say in one sentence what is there, with boxes.",
    "Give a grounded description of this image.",
    "What can be seen, and in which places?",
)
"""Questions for a caption with the positions of objects."""
VQA = (
    "<question>",
    "<question> Answer briefly.",
    "Answer this question about the image: <question>",
    "Please answer. <question>",
    "Look at the image. <question>",
    "<question> Keep the answer short.",
    "I have a question about this image: <question>",
    "Here is an image. <question>",
)
"""Questions with a short answer."""
VQA_REASON = (
    "<question> Explain how you get to the answer.",
    "<question> Think step by step, then answer.",
    "Answer with your reasons: <question>",
    "<question> Give your reasoning before the answer.",
    "First reason, then answer. <question>",
    "<question> Please say why.",
    "Explain and answer: <question>",
    "<question> Show the steps that lead to the answer.",
)
"""Questions for an answer with reasons."""
VQA_REASON_BOXES = (
    "<question> Explain how you get to the answer, with the boxes of what you look at.",
    "<question> Think step by step and give the place of each object you use.",
    "Answer with reasons and coordinates: <question>",
    "<question> Reason about the objects, naming where they are, then answer.",
    "First say what you see and where, then answer. <question>",
    "<question> Justify the answer by regions of the image.",
    "Explain with boxes, then answer: <question>",
    "<question> Show the steps, and the region of each.",
)
"""Questions for an answer with reasons and boxes."""
VQA_REASON_POINTS = (
    "<question> Explain how you get to the answer, pointing at what you look at.",
    "<question> Think step by step and give a point on each object you use.",
    "Answer with reasons and points: <question>",
    "<question> Reason about the objects, pointing at them, then answer.",
    "First point at what matters, then answer. <question>",
    "<question> Justify the answer by points in the image.",
    "Explain with points, then answer: <question>",
    "<question> Show the steps, and a point for each.",
)
"""Questions for an answer with reasons and points."""
DETECTION = (
    "Detect <label>.",
    "Locate <label> in this image.",
    "Which boxes contain <label>?",
    "List the boxes of <label>.",
    "Give the box of every object of this class: <label>.",
    "Mark all objects of this class: <label>.",
)
"""Questions for all boxes of a class (DetectionDataset)."""
PRESENCE = (
    "Does this image show <label>? Answer yes or no.",
    "Is the following visible in this image: <label>? Answer yes or no.",
    "Look for <label>. Does the image contain any? Answer yes or no.",
    "Does the image contain <label>? Answer yes or no.",
)
"""Questions for the presence of a class (PresenceDataset)."""
COUNT = (
    "How many <label> does this image show? Answer with a number.",
    "Count <label> in this image. Answer with a number.",
    "Give the number of <label> in this image.",
    "What is the number of <label> in this image? Answer with a number.",
)
"""Questions for the number of objects of a class (CountingDataset)."""
FINDINGS = (
    "Which of these findings does the image show: <labels>? Separate them by semicolons, or answer <none>.",
    "Name all findings in this image, separated by semicolons, or <none>. Choose from: <labels>.",
    "Select every label that applies to this image, or <none>: <labels>.",
)
"""Questions for several labels (MultiLabelDataset)."""
CLASS = (
    "Which class does this image belong to: <labels>?",
    "Classify this image. Choose one of: <labels>.",
    "Which of these does the image show: <labels>? Answer with one of them.",
)
"""Questions for one of several classes (ClassificationFolderDataset)."""
MEASUREMENT = (
    "What is the <label> in this image? Answer with a number<unit>.",
    "Measure the <label>. Answer with a number<unit>.",
    "Give the <label> as a number<unit>.",
)
"""Questions for a number (RegressionDataset)."""
SEGMENTATION = (
    "Segment <label>.",
    "Outline <label> in this image.",
    "Which pixels belong to <label>?",
    "Give the mask of <label>.",
    "Delineate <label>.",
)
"""Questions for the mask of a structure (SegmentationDataset)."""
REPORT = (
    "Write the <section> of the report of this examination.",
    "Report the <section>.",
    "Give the <section> of this examination, as in a radiology report.",
    "Describe this examination as in the <section> of a radiology report.",
)
"""Requests for a section of a radiology report."""
