"""How good captions are, measured as COCO measures it, in plain Python: no Java, no torch."""
