"""The demo from start to end: SFT, RL, a plot, the bill.  Each part is a script that also runs alone."""

import bill
import plot
import rl
import sft


def main():
    sft.main()
    rl.main()
    plot.main()
    bill.main()


if __name__ == "__main__":
    main()
