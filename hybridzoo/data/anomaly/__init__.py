"""Data of anomaly detection: images with a class, a label and, where known, a mask of the anomalous pixels."""
