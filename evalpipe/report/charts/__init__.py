"""Pictures as inline SVG: numbers → markup. Pure; no fill or colour here, only class names of the page's stylesheet.

Every picture is readable in black and white (shape, dash and hatch carry the meaning, colour repeats it) and is
described in words for those who cannot see it.
"""
