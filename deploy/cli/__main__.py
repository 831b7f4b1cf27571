"""
`python -m deploy.cli`, which ./inv starts.
"""

from deploy.cli.program import main

main()
