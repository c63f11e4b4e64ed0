"""Chat templates: honest ones, and those that try to get out, to hang or to eat the memory. t..: the list's numbers."""

MESSAGES = [{"role": "user", "content": " Hi {{ x }} "}, {"role": "assistant", "content": "Yes"}]

WORKS = {
    "{% for m in messages %}\n  {%- if loop.first %}[{% endif %}{{ m.role + ':' ~ m['content']|trim }};{% endfor %}]": (
        "[user:Hi {{ x }};assistant:Yes;]"
    ),
    "{{ bos_token }}{{ messages[1:][0].content.upper() }}{% if not tools %}-{% endif %}": "<s>YES-",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | tojson }}": (
        'user, assistant [{"role": "user", "content": " Hi {{ x }} "}, {"role": "assistant", "content": "Yes"}]'
    ),
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n * 2 }}": "4",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}": "user",
    "{% generation %}{{ 'x' * 3 }}{% endgeneration %}{{ '%s-%d' % ('a', 3) }}{{ '{}'.format(4) }}": "xxxa-34",
    "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f(3, y='é') }}": "<12><3é>",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ nothing }}{{ none is none }}": "1True",
    "{{ {'a': [1, 2]}.items() | list }}{{ 'a,b'.split(',')[-1] }}{{ 'aXb'.replace('X', '-') }}": "[('a', [1, 2])]ba-b",
    "{% if add_generation_prompt %}{{ 'go\n' }}{% endif %}\n{{ 2 ** 10 }} {{ 7.15 | round(1) }}": "go\n1024 7.2",
}

NUMBERED = {  # as the list of malformed files numbers them
    "t01": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "t02": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "t03": "{{ ('{0.__class__.__init__.__globals__}') | attr('format')(messages) }}",
    "t04": "{% for i in range(10**9) %}x{% endfor %}",
    "t05": "{{ 'x' * 10**10 }}",
    "t06": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "t07": "{{ messages.append(1) }}",
    "t08": "{% include '/etc/passwd' %}",
    "t09": "{{ raise_exception('x') }}",
    "t10": "{{ 10**10**10 }}",
    "t11": "{{ '%0999999999d' % 1 }}",
    "t12": "{{ messages.__class__ }}",
}

SIGN = "\U0001f642"  # four bytes
HUNGRY = {  # what took 300 MB and more, or went on without end
    "a filter that swallows the limit's error": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 'x' | int %}{% endfor %}{% endfor %}"
    ),
    "many variables": "".join(f"{{% set a{i} = '{SIGN}' * 4000000 %}}" for i in range(1500)),
    "many slices": f"{{% set s = '{SIGN}' * 4000000 %}}" + "".join(f"{{% set a{i} = s[1:] %}}" for i in range(1500)),
    "many words": f"{{% set s = '{SIGN} ' * 30000 %}}" + "".join(f"{{% set a{i} = s.split() %}}" for i in range(1500)),
    "many pieces of output": "{% for i in range(99999) %}{{ 'x' * 4000000 ~ i }}{% endfor %}",
    "a field many times": "{{ ('%(a)s' * 10000) % {'a': 'x' * 4000000} }}",
    "a field many times, format": "{{ ('{0}' * 10000).format('x' * 4000000) }}",
    "a field many times, filter": "{{ ('%(a)s' * 10000) | format(a='x' * 4000000) }}",
    "list of letters": f"{{{{ ('{SIGN}' * 4000000) | list }}}}",
    "letters mapped": f"{{{{ ('{SIGN}' * 4000000) | map('upper') | list }}}}",
    "letters as arguments": f"{{{{ range(*('{SIGN}' * 4000000)) }}}}",
    "letters joined": f"{{{{ ''.join('{SIGN}' * 4000000) }}}}",
    "words": f"{{{{ ('{SIGN} ' * 2000000).split() }}}}",
    "words between letters": f"{{{{ ('{SIGN}a' * 2000000).rsplit('a') }}}}",
    "lines": f"{{{{ ('{SIGN}\\n' * 2000000).splitlines() }}}}",
    "65 macros deep": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(65) }}",
    "a loop in itself": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
}

OTHERS = [
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages[0]['__class__']['__mro__'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages.sort() }}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ raise_exception('the reason') }}",
    "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% block x %}{{ self.x() }}{% endblock %}",
    "{{ 10**10 * [1] }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2.0 ** (10 ** 9) }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.encode('utf-7') }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ range(99999) | join('b' * 100000) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = {1: n.s, 2: n.s} %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}"
    "{% endfor %}{{ n.s }}",
    "{{ 1 / 0 }}",
    "{{ nothing.more }}",
    "{{ nothing() }}",
    "{{ x",
    "{% if %}",
    "{% endfor %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 30000 + "1 }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% for a in messages %}" * 60 + "{% endfor %}" * 60,
    "x" * 200_000,
    "{{" + "1," * 30_000 + "}}",
]
REJECTED = [*NUMBERED.values(), *HUNGRY.values(), *OTHERS]
