"""Annotation files of object detection: Pascal VOC and COCO."""
