import pytest

from tests.community.worlds import community_world, fitted


@pytest.fixture(scope="package")
def world():
    """A data set, predictions, true rates and the community of the training part."""
    dataset, predictions, truth, fold_of = community_world()
    return dataset, predictions, truth, fitted(dataset, predictions, fold_of)
