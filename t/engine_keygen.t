#!/usr/bin/perl

# llm-engine keygen: a key and its line for nginx's key file.

use strict;
use warnings;

use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use LLM::Process;
use LLM::Test;

my $t = LLM::Test->new;
my $runs = 0;

sub keygen {
    my $log = $t->dir . '/keygen' . $runs++ . '.log';
    my $p = LLM::Process->start([ "$t->{build}/llm-engine", 'keygen', @_ ], log => $log,
        env => { $t->_sanitizer_env(1) });
    my $status = $p->wait(10);

    return (defined $status ? $status >> 8 : 'none', slurp($log));
}

my %seen;
for my $tenant ('acme', 'x' x 255, 'a=b,"c"') {
    my ($status, $said) = keygen($tenant);
    my ($key, $line, @more) = split /\n/, $said, -1;

    is($status, 0, 'done');
    like($key, qr/^sk-llm-[a-z2-7]{58}\z/, 'the key');
    my $digest = sha256_hex($key);
    is($line, 'key-' . substr($digest, 0, 16) . " $digest $tenant", 'its line');
    is_deeply(\@more, [''], 'and no more');
    ok(!$seen{$key}++, 'a new one');
}

for my $bad ([], ['a', 'b'], ['--help'], [''], ['x' x 256], ['a b'], ['#a'], ['*public*'], ["\xc3\xa4"]) {
    my ($status, $said) = keygen(@$bad);

    is($status, 2, 'refused: ' . (@$bad ? substr($bad->[0], 0, 10) : 'nothing'));
    unlike($said, qr/sk-llm-/, 'without a key');
}

$t->finish;
