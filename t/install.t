#!/usr/bin/perl

# make install and make module: what lands where, and that nginx takes the module from there.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $root = $t->dir . '/root';
my $log = $t->dir . '/make.log';

# the caller's make is not ours
delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL)};

sub make {
    my @make = ('make', '-s', "BUILD=$t->{build}", "SANITIZE=$t->{sanitize}", @_);

    return LLM::Process->start(\@make, log => $log)->wait(300) == 0;
}

sub mode {
    my @stat = stat("$root$_[0]") or return 'missing';

    return sprintf '%o', $stat[2] & 07777;
}

ok(make('install', 'PREFIX=/usr', "DESTDIR=$root"), 'make install PREFIX=/usr')
    or diag(slurp($log));
is(mode('/usr/bin/llm-engine'), '755', 'the engine');
is(mode('/usr/lib/nginx/modules/ngx_http_llm_module.so'), '644', 'the module');
is(mode('/usr/lib/systemd/system/llm-engine.service'), '644', 'the unit');
is(mode('/etc/llm-engine.conf'), '644', 'the configuration');
is(mode('/usr/share/llm-engine/models/demo/config.json'), '644', 'the demo model');
is(mode('/usr/share/doc/ngx-llm/README.md'), '644', 'README.md');
is(mode('/usr/share/doc/ngx-llm/redis.conf'), '644', 'redis.conf');
is(mode("/usr/share/doc/ngx-llm/$_"), '644', $_) for qw(llm-log.conf nodes.conf);
is(mode("/usr/share/doc/ngx-llm/llm-$_.conf"), '644', "llm-$_.conf") for qw(limits log);
is(slurp("$root/usr/lib/systemd/system/llm-engine.service"), slurp('conf/llm-engine.service'),
    'the unit is as committed');

my ($good, $said) = $t->nginx_new(no_module => 1,
    main => "load_module $root/usr/lib/nginx/modules/ngx_http_llm_module.so;")->test;
ok($good, 'nginx loads the installed module') or diag($said);

$t->file('root/etc/llm-engine.conf', "# mine\n");
ok(make('install', 'PREFIX=/usr', "DESTDIR=$root"), 'once more')
    or diag(slurp($log));
is(slurp("$root/etc/llm-engine.conf"), "# mine\n", 'a configuration that is there stays');

ok(make('install', 'PREFIX=/opt/llm', "DESTDIR=$root"), 'make install PREFIX=/opt/llm')
    or diag(slurp($log));
is(mode('/opt/llm/bin/llm-engine'), '755', 'the engine');
is(mode('/opt/llm/etc/llm-engine.conf'), '644', 'the configuration');
like(slurp("$root/opt/llm/lib/systemd/system/llm-engine.service"),
    qr{^ExecStart=/opt/llm/bin/llm-engine --config /opt/llm/etc/llm-engine\.conf$}m,
    'the unit names them');
like(slurp("$root/opt/llm/etc/llm-engine.conf"), qr{^model /opt/llm/share/llm-engine/models/demo$}m,
    'the configuration names the demo model');

# against a source tree that does not say how its nginx was configured
my $source = $t->dir . '/nginx src';
system('cp', '-r', '/usr/share/nginx/src', $source) == 0 or die "cp: $?";
unlink "$source/conf_flags" or die "conf_flags: $!";
my $build = $t->dir . '/build';
ok(make('module', "NGINX_SRC=$source", "BUILD=$build"), 'make module NGINX_SRC=DIR')
    or diag(slurp($log));
($good, $said) = $t->nginx_new(no_module => 1,
    main => "load_module $build/ngx_http_llm_module.so;")->test;
ok($good, 'nginx loads that module') or diag($said);
ok(!make('module', "NGINX_SRC=$source/none", "BUILD=$build"), 'a tree that is not there');
like(slurp($log), qr{no nginx source tree: NGINX_SRC=\Q$source\E/none}, 'is named');

# the example configuration, with the installed engine
my $engine = LLM::Process->start(
    [ "$root/opt/llm/bin/llm-engine", '--config', 'conf/llm-engine.conf', '--model', 'models/demo',
        '--test-config' ], log => $t->dir . '/engine.log');
is($engine->wait(60), 0, 'llm-engine takes conf/llm-engine.conf')
    or diag(slurp($t->dir . '/engine.log'));

$t->finish;
