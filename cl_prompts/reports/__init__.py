"""Reports: folders of finished runs -> tables with means and spreads, as text and as one page. Reads files alone."""
