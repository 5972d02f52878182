"""Small vocabularies for the tiny checkpoints: byte-pair merges learned from a built-in text about medical images."""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

TEXT = """\
What is shown in this image? Which imaging modality is this? What kind of medical image is it? Answer with one word.
This image is a CT scan. This image is an MRI. This image is an X-ray. This is an ultrasound image of the heart.
This image is a fundus photograph. This image is a pathology slide. This image is an endoscopy frame.
The modality is CT, MRI, X-ray, ultrasound, fundus, pathology or endoscopy. Modality: computed tomography.
Magnetic resonance imaging of the brain shows no acute abnormality. The chest radiograph shows clear lungs.
How many lesions are there? There are two lesions. There is one lesion. There are three nodules in the left lung.
How many cells can be counted? Count the bright spots and give the number. The number of spots is 12.
Where is the lesion? The lesion is in the upper left quadrant. The mass is in the lower right region of the image.
Is there a pleural effusion? Yes, there is a small pleural effusion on the right. No, there is no pneumothorax.
Is the heart enlarged? The cardiac silhouette is normal. The heart size is within normal limits. No focal opacity.
Write a short report. Findings: the lungs are clear. Impression: no acute cardiopulmonary process.
Describe the findings. Findings: a round bright lesion with a diameter of 24 pixels. Impression: benign appearance.
What is the diameter of the lesion in pixels? The diameter is 17.5 pixels. The area is 240 square millimetres.
What is the ejection fraction? The ejection fraction is 58 %. The end-diastolic volume is 110 mL.
The left ventricle is dilated and its function is reduced. The mitral valve and the aortic valve open normally.
Retina with optic disc, macula and vessels. Signs of diabetic retinopathy: microaneurysms, haemorrhages and exudates.
The tissue shows nuclei stained with haematoxylin and eosin. Tumour cells are present in the lymph node section.
A polyp is seen in the colon. The mucosa is normal. The lumen is visible and there is no bleeding or ulcer.
The patient is a 63 year old woman with cough and fever. The patient is a 45 year old man with chest pain.
Compare the first image with the second image. In the first image the lesion is larger than in the second one.
Detect the object and give its box as x1, y1, x2, y2. The box is [0.120, 0.250, 0.480, 0.760]. Segment the organ.
You are a helpful medical assistant. Answer the question about the image briefly and precisely, please.
A: yes. B: no. C: maybe. D: unknown. The correct answer is option B because the finding is not present here.
Normal, abnormal, mild, moderate, severe, benign, malignant, positive, negative, bright, dark, large, small, round.
Liver, kidney, spleen, pancreas, stomach, bladder, bone, muscle, skin, eye, breast, femur, spine, knee, abdomen.
The red circle, the green square, the blue triangle, the yellow circle and the white square. Segment the blue circle.
Outline the red triangle. Mark all of the green triangle. Which pixels belong to the yellow square, or a white triangle?
user: describe this image.

assistant: The image shows a phantom with shapes on a dark background.

system: Answer in English.

It was the best known method that they have used for many years; we see it as well as you do, and so does he.
I do not know what to say about this, but some of them could make more of it than others if they had time.
When will the next one come? Who was there before? Which of these would be most likely? Why should it be so?
"""
"""Text from which merges are learned, so that words of the tests and of the demo become few tokens."""

BYTES = [f"<0x{value:02X}>" for value in range(256)]
"""Pieces for the bytes of characters outside the vocabulary, as in SentencePiece."""


def train_pieces(specials: list[str], size: int = 1200) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and its merges in the manner of SentencePiece (`▁` for spaces, bytes as fallback).

    Ids begin with `specials` in their order; then come the 256 bytes, characters and merges, `size` in all.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Gemma merges across words. Words are separated only while merges are learned, so that pieces are words and digits.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁?[A-Za-z]+|\n+|[0-9]|▁(?=[0-9])|▁?[^A-Za-z0-9\n]"), behavior="isolated"
    )
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    return _train(tokenizer, specials + BYTES, alphabet, size)


def train_bytes(specials: list[str], size: int = 1000) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and its merges in the manner of GPT-2, one printable character a byte; `specials` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _train(tokenizer, specials, pre_tokenizers.ByteLevel.alphabet(), size)


def _train(
    tokenizer: Tokenizer, specials: list[str], alphabet: list[str], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True) + ["\n\n", "\n\n\n"], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return learned["vocab"], [(left, right) for left, right in learned["merges"]]
