"""Draws what sft.py and rl.py recorded: plot.png in the demo's folder."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first: no display is needed)

import record  # noqa: E402


def curve(axes, name, title, label):
    steps, values = zip(*record.load(name)["values"])
    axes.plot(steps, values, color="tab:blue", alpha=0.35)
    smooth = [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
    axes.plot(steps, smooth, color="tab:blue", label="mean of five steps")
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend()


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curve(left, "sft", "SFT on licence texts", "loss a token (nats)")
    curve(right, "rl", "RL on small sums", "mean reward")
    path = record.FOLDER / "plot.png"
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
