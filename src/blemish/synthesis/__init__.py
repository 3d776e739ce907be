"""Making defects: pictures to teach a detector with, and where they are damaged."""
