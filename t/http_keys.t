#!/usr/bin/perl

# llm_keys: what a key file may say, who gets in with which key, and that nobody else does, by
# whatever way.

use strict;
use warnings;

use lib 't/lib';
use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use LLM::HTTP2;
use LLM::Key;
use LLM::Process qw(alive);
use LLM::Test;

my $t = LLM::Test->new;

# --- the file ---

my $key = LLM::Key->new(id => 'k', tenant => 'acme');
my $digest = sha256_hex($key->text);

sub tested {
    my ($text, %o) = @_;

    $t->file('tested.keys', $text);
    return $t->nginx_new(pass => 'llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/tested.keys;', %o)->test;
}

sub accepted {
    my ($name, $text) = @_;
    my ($good, $said) = tested($text);

    ok($good, "accepted: $name") or diag($said);
}

sub refused {
    my ($name, $line, $pattern, $text) = @_;
    my ($good, $said) = tested($text);

    ok(!$good, "refused: $name");
    like($said, qr{\[emerg\].*$pattern.* in \S+/tested\.keys:$line$}m, "$name: why and where");
    unlike($said, qr/$digest|sk-llm/i, "$name: without what the line says");
}

accepted('a line', $key->line);
accepted('comments, blanks, DOS ends, no end', "# who\r\n\n \t \n\tk\t\U$digest\E  acme # Acme\r\n"
    . 'l ' . 'a' x 64 . ' acme');
accepted('all settings', "k $digest acme weight=1000 queued=1 running=4294967295 pages=7"
    . " expires=2999-12-31T23:59:59Z models=a,b/c\n");
accepted('a leap day', "k $digest acme expires=2028-02-29\n");
accepted('names of the greatest length', 'k' x 64 . " $digest " . 't' x 255 . "\n");

for my $bad ([ 'a long id', 'the id is not', 'k' x 65 . " $digest acme" ],
    [ 'an id with a control', 'the id is not', "k\x01 $digest acme" ],
    [ 'nothing but an id', 'the digest is not', 'k' ],
    [ 'the key for its digest', 'the digest is not', 'k ' . $key->text . ' acme' ],
    [ 'a digit too few', 'the digest is not', 'k ' . substr($digest, 1) . ' acme' ],
    [ 'a digit too many', 'the digest is not', "k ${digest}0 acme" ],
    [ 'a digest with a letter', 'the digest is not', 'k ' . substr($digest, 1) . 'g acme' ],
    [ 'no tenant', 'the tenant is not', "k $digest" ],
    [ 'no tenant but a comment', 'the tenant is not', "k $digest # acme" ],
    [ 'a long tenant', 'the tenant is not', "k $digest " . 't' x 256 ],
    [ 'everybody', 'or a reserved name', "k $digest *public*" ],
    [ 'an unknown setting', 'there is no such setting', "k $digest acme wait=1" ],
    [ 'a word', 'there is no such setting', "k $digest acme corp" ],
    [ 'a setting twice', 'a setting is said twice', "k $digest acme weight=1 weight=1" ],
    [ 'a weight of 0', 'the weight is no integer', "k $digest acme weight=0" ],
    [ 'a large weight', 'the weight is no integer', "k $digest acme weight=1001" ],
    [ 'no weight', 'the weight is no integer', "k $digest acme weight=" ],
    [ 'part of one', 'the weight is no integer', "k $digest acme weight=1.5" ],
    map({ [ "a wrong $_", "\"$_\" is no integer", "k $digest acme $_=4294967296" ] }
        qw(queued running pages)),
    map({ [ "the date $_", 'the date is no', "k $digest acme expires=$_" ] }
        qw(2026 2026-1-01 2026-13-01 2026-00-01 2026-01-00 2026-04-31 2027-02-29 2100-02-29
        1969-12-31 2026-01-01T 2026-01-01T00:00:00 2026-01-01T24:00:00Z 2026-01-01T00:60:00Z
        2026-01-01T00:00:60Z 2026-01-01T00:00:00Zx 2026-01-01x never), ''),
    map({ [ "the models $_", 'the models are no names', "k $digest acme models=$_" ] }
        ',a', 'a,', 'a,,b', 'm' x 129, "\xff", '')) {
    my ($name, $why, $line) = @$bad;
    refused($name, 3, $why, "# keys\n\n$line\nnever read");
}
refused('an id twice', 3, 'the id of line 1 again',
    "k $digest a\nl " . 'a' x 64 . " a\nk " . 'b' x 64 . ' a');
refused('a digest twice', 4, 'the digest of line 2 again',
    'a ' . '0' x 64 . " a\nk $digest a\nb " . 'f' x 64 . " a\nl $digest a");

my ($good, $said) = tested("# nobody yet\n");
ok($good && $said =~ /\[warn\] no key in/, 'a file without a key: a warning');
ok(!$t->nginx_new(pass => 'llm_pass unix:%%SOCK%%; llm_keys none.keys;')->test, 'no file: refused');
ok(!$t->nginx_new(pass => 'llm_pass unix:%%SOCK%%; llm_keys %%DIR%%;')->test,
    'a directory: refused');

my $example = abs_path('conf/llm.keys');
($good, $said) = $t->nginx_new(pass => "llm_pass unix:%%SOCK%%; llm_keys $example;")->test;
ok($good && $said !~ /warn/, 'the example') or diag($said);

# keys or a tenant, and the nearest level decides

sub conf_refused {
    my ($name, $pattern, %o) = @_;
    my ($good, $said) = tested($key->line, %o);

    ok(!$good, "refused: $name");
    like($said, $pattern, "$name: why");
}
my $both = qr/conflicts with "llm_\w+" of this level/;
conf_refused('keys beside a tenant', $both,
    location => 'llm_tenant a;');
conf_refused('a tenant beside keys', $both,
    pass => 'llm_pass unix:%%SOCK%%; llm_tenant a; llm_keys %%DIR%%/tested.keys;');
conf_refused('keys twice', qr/"llm_keys" directive is duplicate/,
    location => 'llm_keys %%DIR%%/tested.keys;');
conf_refused('neither', qr/no "llm_keys" or "llm_tenant"/, pass => 'llm_pass unix:%%SOCK%%;');

# --- who gets in ---

my %k = map { $_->{id} => $_ } (
    LLM::Key->new(id => 'plain', tenant => 'acme'),
    LLM::Key->new(id => 'rich', tenant => 'rich',
        settings => 'weight=7 queued=5 running=3 pages=900'),
    LLM::Key->new(id => 'second', tenant => 'acme'),
    LLM::Key->new(id => 'small', tenant => 'small', settings => 'models=alias,other'),
    LLM::Key->new(id => 'expired', tenant => 'acme', settings => 'expires=2020-01-01'),
    LLM::Key->new(id => 'lasting', tenant => 'acme', settings => 'expires=2999-01-01'),
);
my $foreign = LLM::Key->new(tenant => 'foreign');
my $unknown = LLM::Key->new;
my @many = map { LLM::Key->new(tenant => "many$_") } 1 .. 300;

$t->file('a.keys', join '', map { $_->line } values %k, @many);
$t->file('b.keys', $foreign->line);
$t->file('soon.keys', '');
$t->file('index.html', '[<!--# include virtual="/v1/models" -->]');

my $engine = $t->fake_engine(name => 'fake,alias');
$engine->script('answer=request tokens=1000');
my %conf = (
    pass => 'llm_pass unix:%%SOCK%%;',
    http => <<'EOT',
        lingering_timeout 100ms;
        llm_keys %%DIR%%/a.keys;
        llm_weight 2;
        limit_req_zone $llm_tenant zone=req:1m rate=1r/m;
        log_format who '$uri <$llm_tenant>';
        access_log who.log who;
        server {
            listen 127.0.0.1:%%PORT3%%;
            location / { add_header X-Accel-Redirect /v1/models; return 200; }
        }
EOT
    server => <<'EOT',
        listen 127.0.0.1:%%PORT2%% http2;
        set $early $llm_tenant;
        location = /health { llm_pass unix:%%SOCK%%; }
        location /b/v1/ { llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/b.keys; }
        location /tenant/v1/ { llm_pass unix:%%SOCK%%; llm_tenant $arg_who; }
        location /if/v1/ { llm_pass unix:%%SOCK%%; if ($arg_x) { set $x 1; } }
        location /except/v1/ { llm_pass unix:%%SOCK%%; limit_except GET { allow all; } }
        location /any/v1/ { llm_pass unix:%%SOCK%%; satisfy any; allow all; }
        location /models/v1/ {
            llm_model fake unix:%%SOCK%% default;
            llm_model other unix:%%SOCK%%;
            llm_model gone unix:%%DIR%%/nobody.sock;
        }
        location /req/v1/ { llm_pass unix:%%SOCK%%; limit_req zone=req; limit_req_status 429; }
        location /plain/ { return 200 "<$llm_tenant>"; }

        location /rewrite/ { rewrite ^ /v1/models last; }
        location /from-a/ { set $seen $llm_tenant; rewrite ^ /b/v1/models last; }
        location /served-a/v1/ {
            llm_pass unix:%%SOCK%%; set $seen $llm_tenant; rewrite ^ /b/v1/models last;
        }
        location /from-b/ { llm_keys %%DIR%%/b.keys; set $seen $llm_tenant; rewrite ^ /v1/models last; }
        location /try/ { try_files /nothing /v1/models; }
        location /page/ { error_page 404 = /v1/models; return 404; }
        location /named/ { error_page 404 = @named; return 404; }
        location @named { llm_pass unix:%%SOCK%%; }
        location /accel/ { proxy_pass http://127.0.0.1:%%PORT3%%; }
        location /ssi/ { ssi on; alias %%DIR%%/; default_type text/html; }
        location /auth/ { auth_request /v1/models; alias %%DIR%%/; }
        location /mirror/ { mirror /v1/models; return 204; }
        location /proxy/ { proxy_pass http://127.0.0.1:%%PORT%%/v1/; proxy_set_header x-api-key ""; }
EOT
);
my $nginx = $t->nginx(%conf);

sub ask {
    my ($method, $uri, %o) = @_;
    my $c = $nginx->client;

    $c->request($method, $uri, %o);
    return $c->response;
}

sub submitted {
    my ($headers, %o) = @_;
    my $r = ask('POST', $o{uri} // '/v1/completions', headers => $headers,
        json => { prompt => 'x', %{ $o{more} // {} } });

    is($r->status, 200, 'let in') or return {};
    return JSON::PP->new->decode($r->text);
}

for my $name (qw(plain second lasting rich)) {
    for my $headers ($k{$name}->bearer, $k{$name}->x_api_key,
        { %{ $k{$name}->bearer }, %{ $k{$name}->x_api_key } },
        { authorization => 'bEARER   ' . $k{$name}->text },
        { Authorization => 'Basic dTpw', 'X-API-Key' => $k{$name}->text },
        { Authorization => 'Bearer ', 'X-Api-Key' => $k{$name}->text },
        { 'x-api-key' => '', %{ $k{$name}->bearer } }) {
        my $s = submitted($headers);

        is($s->{tenant}, $k{$name}{tenant}, "$name: its tenant");
        is($s->{key_id}, $k{$name}->id, "$name: its id");
    }
}
is(submitted($_->bearer)->{tenant}, $_->{tenant}, 'one of many') for @many;

my $s = submitted($k{rich}->bearer);
is_deeply([ @$s{qw(weight max_queued max_running max_pages)} ], [ 7, 5, 3, 900 ],
    'weight and limits of the line');
$s = submitted($k{plain}->bearer);
is_deeply([ @$s{qw(weight max_queued max_running max_pages)} ], [ 2, 0, 0, 0 ],
    'llm_weight and no limits without');
is(submitted($foreign->bearer, uri => '/b/v1/completions')->{tenant}, 'foreign', 'the nearest file');
$s = submitted($k{rich}->bearer, uri => '/tenant/v1/completions?who=me');
is($s->{tenant}, 'me', 'the nearest is llm_tenant');
is_deeply([ @$s{qw(key_id weight max_queued)} ], [ '0' x 32, 2, 0 ], 'which knows no keys');

# models

sub names { join ' ', map { $_->{id} } @{ $_[0]->json->{data} } }

my %small = (headers => $k{small}->bearer);
is(names(ask('GET', '/v1/models', %small)), 'alias', 'models: those that are allowed');
is(names(ask('GET', '/v1/models', headers => $k{plain}->bearer)), 'fake alias', 'models: all');
is(ask('GET', '/v1/models/alias', %small)->status, 200, 'one of them');
is(ask('GET', '/v1/models/fake', %small)->json->{error}{code}, 'model_not_found', 'another one');
is(ask('POST', '/v1/completions', %small, json => { prompt => 'x', model => 'alias' })->status, 200,
    'a completion by it');
for my $uri (qw(/v1/completions /models/v1/completions)) {
    for my $model ('fake', undef) {
        my $r = ask('POST', $uri, %small,
            json => { prompt => 'x', defined $model ? (model => $model) : () });
        is($r->status, 404, 'not by another one, nor by the default');
        is($r->json->{error}{code}, 'model_not_found', 'as if there were none');
    }
}
is(names(ask('GET', '/models/v1/models', %small)), 'other', 'names of the configuration');
is(ask('GET', '/models/v1/models/gone', headers => $k{plain}->bearer)->status, 503,
    'a model whose engine is not there');
is(ask('GET', '/models/v1/models/gone', %small)->status, 404, 'is not for this key either');
is(ask('POST', '/models/v1/completions', %small, json => { prompt => 'x', model => 'gone' })->status,
    404, 'nor may it be asked');
is(ask('POST', '/models/v1/completions', %small, json => { prompt => 'x', model => 'other' })->status,
    200, 'that are allowed');

# --- nobody else does ---

my $typo = $k{plain}->text;
substr($typo, 20, 1) = substr($typo, 20, 1) eq 'a' ? 'b' : 'a';
my %bad = (
    'no key' => {},
    'an empty one' => { 'x-api-key' => '' },
    'nothing but a scheme' => { Authorization => 'Bearer' },
    'an unknown key' => $unknown->bearer,
    'another file\'s' => $foreign->bearer,
    'a typo' => { Authorization => "Bearer $typo" },
    'an expired one' => $k{expired}->x_api_key,
    'a digest' => { 'x-api-key' => sha256_hex($k{plain}->text) },
    'an id' => { 'x-api-key' => 'plain' },
    'a prefix' => { 'x-api-key' => substr($k{plain}->text, 0, 60) },
    'a longer one' => { 'x-api-key' => $k{plain}->text . 'a' },
    'capitals' => { 'x-api-key' => uc $k{plain}->text },
    'one in quotes' => { Authorization => 'Bearer "' . $k{plain}->text . '"' },
    'two in one' => { 'x-api-key' => $k{plain}->text . ', ' . $k{second}->text },
    'another scheme' => { Authorization => 'Basic ' . $k{plain}->text },
    'no scheme' => { Authorization => $k{plain}->text },
    'another header' => { 'x-apikey' => $k{plain}->text, 'Proxy-Authorization' =>
        'Bearer ' . $k{plain}->text, Cookie => 'x-api-key=' . $k{plain}->text },
    'two that differ' => { %{ $k{plain}->bearer }, %{ $k{second}->x_api_key } },
    'a good one and a bad one' => { %{ $k{plain}->bearer }, %{ $unknown->x_api_key } },
    'a bad one and a good one' => { %{ $unknown->bearer }, %{ $k{plain}->x_api_key } },
    'a header twice' => { 'x-api-key' => $k{plain}->text, 'X-API-Key' => $k{second}->text },
    'a header that knows the tenant' => { 'X-Tenant' => 'acme', 'X-Forwarded-User' => 'acme' },
);
my @ways = (
    map({ [ 'POST', $_ ] } qw(/v1/completions /v1/chat/completions /if/v1/completions?x=1
        /if/v1/completions /except/v1/completions /any/v1/completions /models/v1/completions
        //v1//completions /v1/./x/../completions /v1/%63ompletions /%76%31/completions
        /v1/completions?key=1 http://other.host/v1/completions /named/v1/completions)),
    map({ [ $_, '/v1/models' ] } qw(GET HEAD)),
    map({ [ 'GET', $_ ] } qw(/v1/models/fake /models/v1/models /rewrite/ /try/ /page/ /accel/
        /named/v1/models /proxy/models)),
);
my %body = (completions => { prompt => 'x' }, chat => { messages => [ { role => 'user',
    content => 'x' } ] });
my $before = $engine->counters->{submitted};
my $wrong = 0;

for my $name (sort keys %bad) {
    for my $way (@ways) {
        my ($method, $uri) = @$way;
        my %o = (headers => $bad{$name});

        next if $uri =~ /proxy/ && $name =~ /good one|two that/; # it drops one of the two
        $o{json} = $uri =~ /chat/ ? $body{chat} : $body{completions} if $method eq 'POST';
        my $r = ask($method, $uri, %o);
        my $fine = $r->status == 401
            && ($uri =~ /accel/ || $r->header('WWW-Authenticate') eq 'Bearer')
            && ($method eq 'HEAD' || $r->json->{error}{code} eq 'invalid_api_key')
            && $r->body !~ /owned_by/;
        $wrong++ if !$fine;
        diag("$name: $method $uri: " . $r->status . ' ' . $r->body) if !$fine;
    }
}
is($wrong, 0, keys(%bad) . ' headers, ' . @ways . ' ways: nobody gets in');

my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
for my $name (sort keys %bad) {
    my %headers = map { lc } %{ $bad{$name} };
    next if keys %headers != keys %{ $bad{$name} } || $name eq 'capitals';
    for my $uri ('/v1/completions', '/v1/models') {
        my $id = $h2->request($uri =~ /models/ ? ('GET', $uri)
            : ('POST', $uri, json => $body{completions}), headers => \%headers);
        is($h2->answer($id)->{status}, 401, "HTTP/2: $name, $uri");
    }
}
is($h2->answer($h2->request('GET', '/v1/models', headers => $k{plain}->x_api_key))->{status}, 200,
    'HTTP/2: a good one');
is($h2->answer($h2->request('GET', '/v1/models', headers => { authorization => 'Bearer '
    . $k{plain}->text }))->{status}, 200, 'HTTP/2: in the other header');

is(ask('GET', $_)->status, 404, "$_: nothing is there") for qw(/v1/ /v1/files /v1/health /health/x);
is(ask('GET', '/v1/completions')->status, 405, 'nor by another method');
is(ask('GET', '/health')->status, 200, 'but health is everybody\'s');

# what another file or location found out before does not count

is(ask('GET', '/from-a/', headers => $k{plain}->bearer)->status, 401, 'from a file to another');
is(ask('GET', '/from-b/', headers => $foreign->bearer)->status, 401, 'and back');
is(ask('GET', '/served-a/v1/models', headers => $k{plain}->bearer)->status, 401,
    'from a location that would have served it');
is(ask('GET', '/served-a/v1/models', headers => $foreign->bearer)->status, 200,
    'or would not have');
is(ask('GET', '/from-a/', headers => $foreign->bearer)->status, 200, 'the last one counts');
is(ask('GET', '/from-b/', headers => $k{plain}->bearer)->status, 200, 'in both directions');

# subrequests of a request with a good key

my %good = (headers => $k{plain}->bearer);
unlike(ask('GET', '/ssi/index.html', %good)->body, qr/owned_by/, 'SSI: no answer');
is(ask('GET', '/auth/index.html', %good)->status, 403, 'auth_request: no');
is(ask('GET', '/mirror/', %good)->status, 204, 'mirror: no');
is($engine->counters->{submitted}, $before, 'no engine has heard of any of it');

# --- $llm_tenant before, beside and after ---

is(ask('GET', '/plain/', %good)->body, '<acme>', 'in a location that serves nothing');
is(ask('GET', '/plain/')->body, '<>', 'of nobody');
is(ask('GET', '/req/v1/models', headers => $_->bearer)->status, 200, 'limit_req: the first one')
    for $k{plain}, $k{rich};
is(ask('GET', '/req/v1/models', headers => $_->bearer)->status, 429,
    'limit_req: the second one of the tenant, by any key')
    for $k{second}, $k{rich};
is(ask('GET', '/req/v1/models', headers => $unknown->bearer)->status, 401,
    'limit_req: nobody is not limited')
    for 1 .. 3;
my $log = slurp("$nginx->{dir}/who.log");
like($log, qr{^/req/v1/models <rich>$}m, 'logged');
like($log, qr{^/req/v1/models <->$}m, 'nobody is logged, too');

# --- reload: a broken file leaves everything as it was ---

my ($worker) = $nginx->workers;
$t->file('a.keys', $k{plain}->line . "oops\n" . $k{small}->line);
kill 'HUP', $nginx->master;
ok($nginx->wait_log(qr{\[emerg\].*the digest is not.*a\.keys:2}), 'reload: says what is wrong');
$t->allow(qr/the digest is not/);
is(($nginx->workers)[0], $worker, 'and keeps its workers');
is(ask('GET', '/v1/models', headers => $k{rich}->bearer)->status, 200, 'and its keys');

# When nobody answers by the old file any more.
sub reload {
    my ($file) = @_;
    my @old = $nginx->workers;

    $t->file('a.keys', $file);
    $nginx->reload;
    wait_until(10, sub { !grep { alive($_) } @old }) or die 'the old worker stays';
}

reload($k{plain}->line);
is(ask('GET', '/v1/models', headers => $k{rich}->bearer)->status, 401, 'a good one: other keys');
is(ask('GET', '/v1/models', %good)->status, 200, 'or the same');

# --- a key expires while nginx runs ---

my @at = gmtime(time + 4);
my $soon = LLM::Key->new(settings => sprintf 'expires=%d-%02d-%02dT%02d:%02d:%02dZ', $at[5] + 1900,
    $at[4] + 1, @at[ 3, 2, 1, 0 ]);
reload($soon->line);
my %soon = (headers => $soon->bearer);
is(ask('GET', '/v1/models', %soon)->status, 200, 'before its time');
ok(wait_until(5, sub { ask('GET', '/v1/models', %soon)->status == 401 }), 'after it');
is(ask('GET', '/v1/models', %soon)->json->{error}{message}, 'The key has expired', 'it is told');

unlike(slurp("$nginx->{dir}/error.log"), qr/sk-llm-/, 'no key in the log');

$t->finish;
