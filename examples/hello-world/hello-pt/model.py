"""A small convolutional network for images of 8 x 8 pixels."""

from torch import nn


class Net(nn.Module):
    """Two convolutions with batch normalization, then one linear layer."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 16, 10),
        )

    def forward(self, images):
        """Scores of the ten digits, for images of shape (n, 1, 8, 8)."""
        return self.layers(images)
