"""A plugin for butterfly_sdm, as a third party writes one."""

from butterfly_sdm.plugins.plugin import PluginCard

card = PluginCard(
    name="example",
    summary="Classes of points in a table, by the contrastive loss",
    implementation="example_plugin.method:Example",
)
