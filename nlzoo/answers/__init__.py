"""What a network says of files: scores, detections, pictures, reports."""
