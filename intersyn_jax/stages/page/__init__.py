"""The pieces of the report page: charts as SVG, the template, the style."""
