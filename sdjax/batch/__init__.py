"""Pictures by the thousand: rows of a file to a folder of pictures, by a run that can be killed and goes on.

`rows` reads what is wanted, `groups` puts together what one compiled program draws, `journal` and `output` keep what
is done, `runner` does the rest.
"""
