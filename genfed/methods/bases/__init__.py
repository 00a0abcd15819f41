"""Base classes of methods. Each has a state, settings and phases that several methods share.

A method of your own may derive from one: `from genfed.methods.bases import FederatedAveraging`.
"""

from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.methods.bases.classifier_upload import GlobalClassifier, GlobalClassifiers, train_alone, upload_classifier
from genfed.methods.bases.condition_upload import ConditionUpload, ConditionUploadMethod
from genfed.methods.bases.data_free import DataFreeDistillation, DataFreeState
from genfed.methods.bases.decoder_upload import Decoder, DecoderUpload
from genfed.methods.bases.federated_generator import FederatedGenerator
from genfed.methods.bases.local_training import LocalTraining
from genfed.methods.bases.prompt_upload import PromptUploadMethod
from genfed.methods.bases.representation import RepresentationMethod, RepresentationNetwork
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesis, ServerSynthesisState

__all__ = [
    "Classifiers",
    "ConditionSet",
    "ConditionUpload",
    "ConditionUploadMethod",
    "DataFreeDistillation",
    "DataFreeState",
    "Decoder",
    "DecoderUpload",
    "FederatedAveraging",
    "FederatedGenerator",
    "GlobalClassifier",
    "GlobalClassifiers",
    "LocalTraining",
    "PromptUploadMethod",
    "RepresentationMethod",
    "RepresentationNetwork",
    "ServerSynthesis",
    "ServerSynthesisState",
    "train_alone",
    "upload_classifier",
]
