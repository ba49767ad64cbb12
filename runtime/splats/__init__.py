"""Draws 3D and 4D Gaussian splats on the CPU: cameras, rasteriser, player, files of frames."""
