"""Shared parts of the echocardiogram datasets: files, tracings, planes and volumes."""
