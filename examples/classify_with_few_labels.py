"""Few labels, many pictures: an encoder pretrained without labels inside a scikit-learn pipeline.

    python examples/classify_with_few_labels.py                 # sklearn's digits, about a minute on one core, no download
    python examples/classify_with_few_labels.py --steps 10      # seconds, and too few to learn much
    python examples/classify_with_few_labels.py --per-class 1

The encoder sees all training pictures and no label; the classifier sees a few labeled ones. Beside it the two floors: the pixels
themselves, and the same encoder untrained. Mean and spread are over draws of the labeled pictures, of one training.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from smallview import SelfSupervisedEncoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--per-class", type=int, default=5)
parser.add_argument("--draws", type=int, default=10)
parser.add_argument("--encoder", default="dense_small:32-64-128-256")
given = parser.parse_args()

digits = load_digits()  # a table: 1,797 rows of 8 x 8 pixels from 0 to 16
train, test, labels, test_labels = train_test_split(
    digits.data, digits.target, test_size=500, random_state=0, stratify=digits.target
)

views = {f"method.views.{v}.{name}": value for v in (0, 1) for name, value in (("flip", 0.0), ("scale", (0.3, 1.0)))}
soft = {
    "method.objective.contrastive.loss.temperature": 0.5
}  # a mirrored digit is no digit, and many pictures are nearly alike
own = SelfSupervisedEncoder(encoder=given.encoder, size=16, random_state=0, sets={**views, **soft})
encoders = {
    "raw pixels": FunctionTransformer(),
    "untrained encoder": FrozenEstimator(own.set_params(epochs=0).fit(train)),
    "pretrained encoder": FrozenEstimator(
        SelfSupervisedEncoder(**own.get_params() | {"epochs": None, "steps": given.steps}).fit(train)
    ),
}

rng = np.random.default_rng(0)
draws = [
    np.concatenate([rng.choice(np.flatnonzero(labels == digit), given.per_class, replace=False) for digit in range(10)])
    for _ in range(given.draws)
]
print(
    f"digits read right, %, with {given.per_class} label(s) of each; {len(train):,} pictures without labels, {len(test)} to test on"
)
for name, encoder in encoders.items():
    model = make_pipeline(encoder, StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    scores = [100 * model.fit(train[few], labels[few]).score(test, test_labels) for few in draws]
    print(f"{name:20} {np.mean(scores):5.1f} ± {np.std(scores):.1f}")
