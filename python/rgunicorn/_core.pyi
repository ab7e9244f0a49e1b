__version__: str

def main(argv: list[str]) -> int:
    """Runs the command line, `argv[0]` being the program's name, and gives its exit code."""
