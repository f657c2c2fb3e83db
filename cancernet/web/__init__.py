"""The page that shows a run and its predictions in a browser."""
