"""Videos: how rewards see their frames, and measures of whole videos."""
