"""A finished run answers new images, in a shell and on the page. Nothing here trains or knows the truth of an image."""
