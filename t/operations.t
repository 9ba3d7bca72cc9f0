#!/usr/bin/perl

# doc/operations.md: its nginx.conf serves as it stands there but for addresses and paths, and what
# it names exists.

use strict;
use warnings;

use lib 't/lib';
use Cwd qw(abs_path);
use JSON::PP ();
use LLM::Test;

my $text = slurp('doc/operations.md');
my $reference = slurp('doc/nginx.md');
my ($conf) = $text =~ /^```nginx\n(.*?)^```/ms;
my $t = LLM::Test->new;
my %engine = map { $_ => $t->fake_engine(name => $_) } qw(small-0 small-1 large-0);

$t->certificate;
my ($key, $line) = split /\n/, `$t->{build}/llm-engine keygen acme`;
$t->file('llm.keys', "$line\n");

sub replace {
    my ($old, $new) = @_;

    is($conf =~ s/\Q$old\E/$new/, 1, "$old stands there");
}

replace('load_module modules/ngx_http_llm_module.so;', '%%GLOBALS%%');
replace('worker_processes auto;', '');
replace('http {', "http {\n%%GLOBALS_HTTP%%");
replace('listen 443 ssl http2;', 'listen 127.0.0.1:%%PORT%% ssl http2;');
replace('llm-log.conf', abs_path('conf/llm-log.conf'));
replace($_, $t->dir . "/$_") for 'tls.crt', 'tls.key', 'llm.keys';
replace("unix:/run/llm/$_.sock", 'unix:' . $engine{$_}->socket) for sort keys %engine;
replace('allow 10.0.0.0/8;', 'allow 127.0.0.0/8;');

my $nginx = $t->nginx(conf => $conf);

sub ask {
    my ($method, $uri, %o) = @_;
    my $client = $nginx->client(tls => 1);

    $client->request($method, $uri, %o);
    return $client->response;
}

my %as = (headers => { Authorization => "Bearer $key" });
my $r = ask('POST', '/v1/chat/completions', %as, json => { model => 'large', messages => [
    { role => 'user', content => 'tokens=2' } ], stream => \1, max_tokens => 10 });
is($r->status, 200, 'an answer') or diag($r->body);
is($r->text, 't0 t1', 'of the large model');
is($engine{'large-0'}->counters->{submitted}, 1, 'by its engine');
is(ask('POST', '/v1/completions', json => { prompt => 'x' })->status, 401, 'not without a key');
is(ask('POST', '/v1/completions', %as, json => { prompt => 'x' })->status, 200, 'the default model');
is(ask('GET', '/health')->status, 200, 'health');
my $metrics = ask('GET', '/metrics')->body;
like($metrics, qr/^llm_engine_up\{engine="unix:\S+"\} 1$/m, 'metrics');
ok(wait_until(10, sub { slurp("$nginx->{dir}/llm.log") =~ /\n.*\n.*\n/ }), 'a log');
my ($first) = split /\n/, slurp("$nginx->{dir}/llm.log");
my $logged = JSON::PP->new->utf8->decode($first);

# what it names

my ($table) = $text =~ /^## The log\n(.*?)^## /ms;
my @fields = map { /`(\w+)`/g } map { /^(\| `.*?\|)/ } split /\n/, $table;
is_deeply([ sort @fields ], [ sort keys %$logged ], 'the fields of the log');

my %known = map { $_ => 1 } $reference =~ /\b(llm_\w+)/g;
my @unknown = grep { !$known{ $_ =~ s/_bucket$//r } && !/^llm_small/ } $text =~ /\b(llm_\w+)/g;
is_deeply(\@unknown, [], 'directives, variables and metrics exist');
my %option = map { $_ => 1 } slurp('doc/engine.md') =~ /(--[a-z][a-z-]+)/g;
@unknown = grep { !$option{$_} && $_ !~ /-$/ } $text =~ /`(--[a-z][a-z-]+)/g;
is_deeply(\@unknown, [], 'so do options of the engine');
my %code = map { $_ => 1 } $reference =~ /`([a-z]+_[a-z_]+)`/g;
my ($trouble) = $text =~ /^## When something is wrong\n(.*)/ms;
@unknown = grep { !$code{$_} } map { /^\| \d{3} (.*?) \|/ ? $1 =~ /`(\w+)`/g : () } split /\n/, $trouble;
is_deeply(\@unknown, [], 'and codes of errors');

$t->finish;
