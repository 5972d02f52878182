"""Shared parts of the datasets of echocardiograms: files, tracings, planes and volumes."""
