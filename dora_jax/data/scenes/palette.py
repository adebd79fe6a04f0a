"""Colours by name, as (red, green, blue) from 0 to 255."""

COLOURS = {
    "red": (220, 30, 40),
    "green": (40, 170, 60),
    "blue": (50, 100, 245),
    "yellow": (245, 215, 30),
    "orange": (250, 130, 0),
    "purple": (130, 40, 170),
    "cyan": (0, 190, 210),
    "pink": (240, 70, 160),
    "brown": (125, 75, 35),
}
BACKGROUNDS = {
    "black": (0, 0, 0),
    "grey": (55, 55, 55),
    "white": (255, 255, 255),
    "beige": (240, 228, 200),
}
