#!/usr/bin/perl

# The module as a file: what it exports, how it loads, and that its pure part knows no nginx.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $so = "$t->{build}/ngx_http_llm_module.so";

# Modules are loaded into one name space: a symbol more would meet another library's, as those of
# two copies of hiredis do.

my @defined = sort map { (split)[-1] } split /\n/, `nm -D --defined-only $so`;
is_deeply([ grep { !/^__(?:asan|ubsan|odr)/ } @defined ],
    [qw(ngx_module_names ngx_module_order ngx_modules)], 'three symbols') or diag("@defined");

my @needed = map { /\(NEEDED\).*\[(.*?)\]/ } split /\n/, `readelf -d $so`;
ok(!(grep { !/^lib(?:jansson|crypto|c|m|pthread|asan|ubsan|tsan|gcc_s|stdc\+\+)\b/ } @needed),
    'no library beside jansson and libcrypto') or diag("@needed");

# Its reference names what there is, and nothing else

my $reference = slurp('doc/nginx.md');
my $defined = sub { sort map { /ngx_string\("(llm_\w+)"\)|LLM_VARIABLE\("(llm_\w+)"/ ? $1 // $2 : () }
    split /\n/, slurp("ngx_module/ngx_http_llm_$_[0].c") };
is_deeply([ sort $reference =~ /^### (llm_\w+)$/mg ], [ $defined->('module') ], 'directives');
is_deeply([ sort $reference =~ /^\| `\$(llm_\w+)` \|/mg ], [ $defined->('variables') ], 'variables');

# Twice in one nginx is refused, and no engine has to be there.

my ($good, $said) = $t->nginx_new(main => "load_module $so;")->test;
ok(!$good, 'twice is refused');
like($said, qr/already loaded/, 'by nginx');
my $nginx = $t->nginx;
is($nginx->post('/v1/completions', { prompt => 'x' })->status, 503, 'without an engine');
ok($nginx->quit, 'and quit');

# Replaced while it runs: the mapped file stays what it was

my $copy = $t->dir . '/copy.so';
system('cp', $so, $copy);
my $engine = $t->fake_engine;
$nginx = $t->nginx(no_module => 1, main => "load_module $copy;");
system("cp $so $copy.new && mv $copy.new $copy");
$nginx->reload;
is($nginx->post('/v1/completions', { prompt => 'tokens=1' })->text, 't0', 'a reload keeps the old file');
$nginx->upgrade;
$nginx->quit_old;
is($nginx->post('/v1/completions', { prompt => 'tokens=1' })->text, 't0', 'an upgrade takes the new');

$t->finish;
