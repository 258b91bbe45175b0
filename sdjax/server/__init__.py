"""Pictures over HTTP, for clients that exist.

Read in this order: refusals, limits, work, queue, models, journal; whole, slots, lanes; logs, metrics, engine, warm;
uploads, fields, gateway; openai; a1111_wishes, a1111_extras, a1111_lists, a1111; operation; answers, doors, app.
"""
