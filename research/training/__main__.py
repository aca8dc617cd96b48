"""The command `research-train` of an installed package: `research-train musique|rqr --help`.

In a checkout `bash recipes/train_musique.sh` and `bash recipes/train_rqr.sh` set up the environment as well.
"""

import os

import click

from research.training import recipe, recipe_rqr


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train language models to search with GRPO on veRL: search agents (musique), query reasoners (rqr)."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for the commands of a run: folders of the user's hide no package


main.add_command(recipe.main, "musique")
main.add_command(recipe_rqr.main, "rqr")

if __name__ == "__main__":
    main()
