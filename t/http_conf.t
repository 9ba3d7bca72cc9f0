#!/usr/bin/perl

# The directives: what nginx -t accepts, and where it says that something is wrong.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;

sub accepted {
    my ($name, %o) = @_;
    my ($good, $said) = $t->nginx_new(%o)->test;

    ok($good, $name) or diag($said);
}

# The message, and the line of the configuration that it names.
sub refused {
    my ($name, $pattern, $line, %o) = @_;
    my $nginx = $t->nginx_new(%o);
    my ($good, $said) = $nginx->test;

    ok(!$good, "$name: refused");
    like($said, $pattern, "$name: why") or return;
    my ($file, $number) = $said =~ m{ in (\S+?):(\d+)};
    my @lines = split /\n/, slurp($file // '');
    like($lines[ ($number // 0) - 1 ] // '', $line, "$name: where");
}

# who may ask

refused('no tenant', qr/no "llm_keys" or "llm_tenant" for the endpoint/, qr/llm_pass/,
    pass => 'llm_pass unix:%%SOCK%%;');
refused('no tenant for llm_model', qr/location "\/v1\/" would serve everybody/, qr/llm_model m/,
    pass => 'llm_model m unix:%%SOCK%%;');
accepted('a tenant of the server', pass => 'llm_pass unix:%%SOCK%%;',
    server => 'llm_tenant $remote_addr;');
accepted('a health check needs no tenant',
    server => 'location = /health { llm_pass unix:%%SOCK%%; }');
refused('what only looks like a health check needs one', qr/"llm_tenant"/, qr/healthy/,
    server => 'location /healthy { llm_pass unix:%%SOCK%%; }');

# the status

for my $case ([ 'html', qr/invalid format "html"/ ], [ '"json;x"', qr/invalid format "json;x"/ ]) {
    my ($format, $why) = @$case;

    refused("llm_status $format", $why, qr/llm_status/,
        server => "location /status { llm_status $format; }");
}
refused('a status twice', qr/"llm_status" directive is duplicate/, qr/json/,
    server => "location /status { llm_status prometheus;\nllm_status json; }");
refused('a status of an endpoint', qr/cannot be an endpoint/, qr/llm_pass/,
    location => 'llm_status json;');
for my $case ([ 'llm', qr/must be NAME:SIZE/ ], [ ':1m', qr/must be NAME:SIZE/ ],
    [ 'llm:', qr/invalid zone size/ ], [ 'llm:1x', qr/invalid zone size/ ],
    [ 'llm:8k', qr/too small/ ]) {
    my ($zone, $why) = @$case;

    refused("llm_status_zone $zone", $why, qr/llm_status_zone/, http => "llm_status_zone $zone;");
}
refused('two zones', qr/"llm_status_zone" directive is duplicate/, qr/second/,
    http => "llm_status_zone first:1m;\nllm_status_zone second:1m;");
refused('a zone of another module', qr/declared for a different use/, qr/llm_status_zone/,
    http => "limit_conn_zone \$uri zone=llm:1m;\nllm_status_zone llm:1m;");
refused('a zone of limits', qr/declared for a different use/, qr/llm_status_zone/,
    http => "llm_limit_zone \$uri zone=llm:1m rate=1t/m;\nllm_status_zone llm:1m;");
refused('limits by a zone of the status', qr/declared for a different use/, qr/llm_limit/,
    http => 'llm_status_zone llm:1m;', pass => 'llm_pass unix:%%SOCK%%; llm_tenant a; llm_limit zone=llm;');
accepted('a status', http => 'llm_status_zone llm:1m;',
    server => 'location = /status { llm_status json; allow 127.0.0.1; deny all; }');

# engines and models

refused('no unix:', qr/invalid engine "127.0.0.1:1"/, qr/127/,
    pass => 'llm_pass 127.0.0.1:1; llm_tenant a;');
refused('an empty path', qr/invalid engine "unix:"/, qr/unix:;/,
    pass => 'llm_pass unix:; llm_tenant a;');
refused('a long path', qr/too long path/, qr/xxx/,
    pass => 'llm_pass unix:/' . 'x' x 120 . '; llm_tenant a;');
refused('llm_pass twice', qr/conflicts/, qr/second/,
    pass => "llm_pass unix:%%SOCK%%;\nllm_pass unix:/second; llm_tenant a;");
refused('llm_pass beside llm_model', qr/conflicts/, qr/second/,
    pass => "llm_model m unix:%%SOCK%%;\nllm_pass unix:/second; llm_tenant a;");
refused('llm_model beside llm_pass', qr/conflicts/, qr/second/,
    pass => "llm_pass unix:%%SOCK%%;\nllm_model m unix:/second; llm_tenant a;");
refused('llm_pass models without one', qr/"llm_pass models" without "llm_model"/, qr/models/,
    pass => 'llm_pass models; llm_tenant a;');
refused('llm_pass in a server', qr/"llm_pass" directive is not allowed here/, qr/llm_pass unix:x/,
    server => 'llm_pass unix:x;');
refused('one name twice', qr/name of another model/, qr/second/,
    pass => "llm_model m unix:%%SOCK%%;\nllm_model m unix:/second; llm_tenant a;");
refused('two defaults', qr/second default/, qr/b unix/,
    pass => "llm_model a unix:%%SOCK%% default;\nllm_model b unix:%%SOCK%% default; llm_tenant a;");
refused('a model without engines', qr/invalid number of arguments/, qr/llm_model m;/,
    pass => 'llm_model m; llm_tenant a;');
refused('only "default"', qr/invalid engine "default"/, qr/llm_model m/,
    pass => 'llm_model m default; llm_tenant a;');
refused('65 engines', qr/too many engines of one model, there may be 64 at most/, qr/llm_model m/,
    pass => "llm_model m @{[ map { qq(unix:/$_) } 1 .. 65 ]}; llm_tenant a;");
accepted('64 engines', pass => "llm_model m @{[ map { qq(unix:/$_) } 1 .. 64 ]} default; llm_tenant a;");
refused('a long name', qr/invalid name of a model/, qr/mmm/,
    pass => 'llm_model ' . 'm' x 129 . ' unix:%%SOCK%%; llm_tenant a;');
refused('a name that is no UTF-8', qr/invalid name of a model/, qr/llm_model/,
    pass => "llm_model \xff unix:%%SOCK%%; llm_tenant a;");
accepted('models of the http level', http => "llm_model a unix:/a unix:/b default;\nllm_model b unix:/c;",
    pass => 'llm_pass models; llm_tenant a;');

# numbers

for my $directive (qw(llm_max_tokens llm_max_prompt_tokens)) {
    for my $bad (qw(0 -1 2147483648 x 1.5)) {
        refused("$directive $bad", qr/invalid number|must be between/, qr/$directive \Q$bad/,
            location => "$directive $bad;");
    }
    accepted("$directive 1", location => "$directive 1;");
}
for my $directive (qw(llm_queue_timeout llm_first_token_timeout llm_timeout llm_drain_timeout
    llm_keepalive_interval)) {
    refused("$directive x", qr/invalid value/, qr/$directive x/, location => "$directive x;");
    accepted("$directive", location => "$directive 90s;");
    refused("$directive twice", qr/duplicate/, qr/2s/,
        location => "$directive 1s;\n$directive 2s;");
}
refused("llm_buffer_size $_", qr/must be between|invalid value/, qr/llm_buffer_size $_/,
    location => "llm_buffer_size $_;")
    for qw(0 1023 65m x);
refused('llm_unknown_fields', qr/invalid value "keep"/, qr/keep/,
    location => 'llm_unknown_fields keep;');
refused($_, qr/invalid value "maybe"/, qr/$_/, location => "$_ maybe;")
    for qw(llm_ignore_client_abort llm_intercept_errors);

# tenants

for my $bad (qw(0 -1 1001 1.5 x), '""') {
    refused("llm_weight $bad", qr/invalid weight "[^"]*", it must be an integer from 1 to 1000/,
        qr/llm_weight \Q$bad/, location => "llm_weight $bad;");
}
accepted("llm_weight $_", location => "llm_weight $_;") for 1, 1000, '$remote_user';
refused('llm_weight twice', qr/duplicate/, qr/2;/, location => "llm_weight 1;\nllm_weight 2;");
refused('llm_cache_scope', qr/invalid value "all"/, qr/all/, location => 'llm_cache_scope all;');
accepted("llm_cache_scope $_", location => "llm_cache_scope $_;") for qw(tenant public off);

# limits

my $limits = "llm_limit_zone \$remote_addr zone=a:1m rate=10t/m;\nllm_limit_zone \$llm_tenant zone=b:32k rate=5r/s;";
accepted('limits', http => $limits, location => <<'EOT');
    llm_limit zone=a burst=100 nodelay dry_run;
    llm_limit zone=b;
    llm_limit_status 503;
    llm_limit_log_level info;
    llm_limit_cached_discount 100;
EOT
accepted('limits before their zone', http => "llm_limit zone=a;\n$limits");
for my $bad (qw(10 10t 10t/h 0t/m -1t/m 1.5t/m t/m 10x/m 10t/m1 1000000000001t/m 20000000000t/s), '') {
    refused("rate=$bad", qr/invalid rate "rate=\Q$bad"/, qr/rate=\Q$bad;/,
        http => "llm_limit_zone \$remote_addr zone=a:1m rate=$bad;");
}
for my $case ([ 'a', qr/must be NAME:SIZE/ ], [ ':1m', qr/must be NAME:SIZE/ ],
    [ 'a:x', qr/invalid zone size/ ], [ 'a:-1', qr/invalid zone size/ ],
    [ 'a:31k', qr/too small/ ]) {
    my ($zone, $why) = @$case;

    refused("zone=$zone", $why, qr/zone=\Q$zone/,
        http => "llm_limit_zone \$remote_addr zone=$zone rate=1t/m;");
}
refused('a limit of no zone', qr/must have "zone" parameter/, qr/2t/,
    http => 'llm_limit_zone $remote_addr rate=1t/m rate=2t/m;');
refused('a zone without a rate', qr/must have "rate" parameter/, qr/zone=a:1m zone/,
    http => 'llm_limit_zone $remote_addr zone=a:1m zone=a:1m;');
refused('a zone with something else', qr/invalid parameter "sync"/, qr/sync/,
    http => 'llm_limit_zone $remote_addr zone=a:1m sync;');
refused('a zone twice', qr/"a" is already bound to key "\$remote_addr"/, qr/other/,
    http => "$limits\nllm_limit_zone other zone=a:1m rate=1t/m;");
for my $bad (qw(0 -1 x 1.5 1000000000001), '') {
    refused("burst=$bad", qr/invalid burst value/, qr/burst=\Q$bad/, http => $limits,
        location => "llm_limit zone=a burst=$bad;");
}
refused('llm_limit without a zone', qr/must have "zone" parameter/, qr/burst=1;/, http => $limits,
    location => 'llm_limit burst=1;');
refused('llm_limit with something else', qr/invalid parameter "delay=1"/, qr/delay=1/, http => $limits,
    location => 'llm_limit zone=a delay=1;');
refused('a limit twice', qr/"llm_limit" directive is duplicate/, qr/burst=2/, http => $limits,
    location => "llm_limit zone=a;\nllm_limit zone=a burst=2;");
{
    my ($good, $said) = $t->nginx_new(location => 'llm_limit zone=none;')->test;
    ok(!$good && $said =~ /zero size shared memory zone "none"/, 'a zone that is not there');
}
refused("llm_limit_status $_", qr/value must be|invalid/, qr/llm_limit_status $_/,
    location => "llm_limit_status $_;") for qw(399 600 x);
refused('llm_limit_log_level', qr/invalid value "crit"/, qr/crit/, location => 'llm_limit_log_level crit;');
refused("llm_limit_cached_discount $_", qr/value must be|invalid/, qr/discount $_/,
    location => "llm_limit_cached_discount $_;") for qw(-1 101 x);

for my $bad (qw(0 -1 x 1.5), '""') {
    refused("llm_budget $bad", qr/invalid budget/, qr/llm_budget \Q$bad/, location => "llm_budget $bad;");
}
accepted("llm_budget $_", location => "llm_budget $_;") for 1, '$remote_user';

# nginx -t opens no socket and starts nothing

my $engine = $t->fake_engine;
accepted('nginx -t');
is($engine->counters->{accepted}, 0, 'no session from nginx -t');

# a level passes on what an inner one does not say

my $nginx = $t->nginx(
    http => "llm_max_tokens 7;\nllm_max_prompt_tokens 70;\nllm_weight 5;",
    server => <<'EOT',
        llm_tenant outer;
        llm_queue_timeout 10s;
        llm_buffer_size 4k;
        llm_cache_scope public;
        location /inner/v1/ { llm_pass unix:%%SOCK%%; llm_max_tokens 8; llm_tenant inner; llm_timeout 0;
            llm_weight $arg_weight; llm_cache_scope off; }
        location /outer/v1/ { llm_pass unix:%%SOCK%%; }
EOT
);

sub submitted {
    my ($uri) = @_;
    my $r = $nginx->post($uri, { prompt => 'answer=request tokens=100', stream => \1 });

    return JSON::PP->new->decode($r->text);
}
$engine->script('answer=request');

my $outer = submitted('/outer/v1/completions');
is_deeply([ @$outer{qw(tenant max_tokens max_prompt_tokens credit weight scope)} ],
    [ 'outer', 7, 70, 4096, 5, 1 ], 'inherited');
ok($outer->{queue_deadline} > 9000 && $outer->{queue_deadline} <= 10000, 'queue deadline');
ok($outer->{first_token_deadline} > 290_000, 'first token: five minutes unless said');
ok($outer->{deadline} > 3_590_000, 'the whole: an hour unless said');
my $inner = submitted('/inner/v1/completions');
is_deeply([ @$inner{qw(tenant max_tokens max_prompt_tokens deadline weight scope)} ],
    [ 'inner', 8, 70, 0, 1, 2 ], 'said again');

# a weight of the request's own

sub warnings { scalar(() = $nginx->error_log =~ /\[warn\].*of "llm_weight" is no integer/g) }

is(warnings(), 0, 'an empty weight is none');
is(submitted("/inner/v1/completions?weight=$_")->{weight}, $_, "weight $_") for 1, 77, 1000;
is(warnings(), 0, 'which is right');
my $bad = 0;
for my $value (qw(0 1001 x -5 99999999999999999999)) {
    is(submitted("/inner/v1/completions?weight=$value")->{weight}, 1, "weight $value is 1");
    is(warnings(), ++$bad, 'and logged');
}
is(submitted('/inner/v1/completions?scope=public&llm_cache_scope=public')->{scope}, 2,
    'the scope is no matter of the request');

$t->finish;
