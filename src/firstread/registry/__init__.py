# SPDX-License-Identifier: Apache-2.0
"""Registries over HTTP: transport, authentication, endpoints, mirrors."""
