"""The parts of video preference training, one idea a file: clips, layouts, attention, vision, references, the check."""
