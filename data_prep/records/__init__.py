"""Any recorder's file becomes k detections of n visits."""
