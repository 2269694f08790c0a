"""What a run leaves on disk and how it is written: whole files, its folder, pictures, tables of numbers, statistics."""
