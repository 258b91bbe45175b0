"""Pictures over HTTP, for clients that exist.

Read in this order: refusals, limits, work, queue, models, journal, whole, engine; uploads, fields, gateway; openai;
a1111_wishes, a1111_extras, a1111_lists, a1111; operation; answers, doors, app. None of it is imported by the library.
"""
