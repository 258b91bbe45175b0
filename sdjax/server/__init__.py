"""Pictures over HTTP, for clients that exist.

Read in this order: refusals, limits, work, queue, models, journal, whole, engine; uploads, fields, gateway; openai,
operation; answers, doors, app. All that need FastAPI come after the engine.
"""
