"""Datasets by task: classification, several labels, detection, counting, regression and segmentation."""
