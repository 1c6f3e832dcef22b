"""What a sweep found, for people: `results/<study>/report.html`, and figures for notebooks.

python -m sweep.report
"""
