"""`console.display` for templates."""

from django import template

from console import display

register = template.Library()
register.filter("state", display.state)
register.filter("action", display.action)
