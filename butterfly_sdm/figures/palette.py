"""The colours in which numbers are drawn, the same in pictures, pages and styles of maps."""

#: From nothing to much: pale yellow to dark green in steps of lightness, readable without colour
#: vision and in print.
RAMP = ("#ffffe5", "#d9f0a3", "#78c679", "#238443", "#00441b")

#: Differences, violet to orange through white; told apart without colour vision.
DIVERGING = ("#5e3c99", "#b2abd2", "#f7f7f7", "#fdb863", "#b35806")
