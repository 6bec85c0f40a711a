"""Do the claims of the VideoMAE paper hold on the project's clips?

`python -m experiments.study.run`, then `python -m experiments.study.report`.

forms.py has how much is run, lists.py the clips, run.py the runs, claims.py what is decided from
their results, and report.py the page.
"""
