#!/usr/bin/perl

# Two engines of one model are restarted, one after the other, while clients ask: nobody notices.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;
use POSIX ();

my $t = LLM::Test->new;
my @engines = map { $t->engine } 0, 1;
my $nginx = $t->nginx(workers => 2,
    pass => 'llm_model demo ' . join(' ', map { 'unix:' . $_->socket } @engines) . "; llm_tenant test;");
my $rounds = long(2, 10);
my $clients = 3; # what two processors answer at half their speed, and something that waits

my %request = (temperature => 0, max_tokens => 24);
my $expected = $nginx->post('/v1/completions', { prompt => 'Once upon a time', %request })->text;

# Asks until there is a file that says stop; what became of the requests.
sub load {
    my ($me) = @_;
    my %became;

    for (my $i = 0; !-e $t->dir . '/stop'; $i++) {
        my $stream = $i % 2 ? \1 : \0;
        my $alike = $i % 3;
        my $c = $nginx->client(timeout => 60);
        my $r = $alike
            ? $c->post('/v1/completions', { prompt => 'Once upon a time', %request, stream => $stream })
            : $c->post('/v1/chat/completions', { %request, stream => $stream, messages => [
                { role => 'user', content => "Number $me.$i" } ] });
        my $said = $r->text;
        my $how = $r->status != 200 ? 'refused ' . $r->status . ' ' . ($r->body // '')
            : !$r->complete || $$stream && !$r->done ? 'broken'
            : $alike && $said ne $expected ? 'wrong' : 'answered';

        $became{$how}++;
        $c->close;
        sleep 0.02;
    }
    return \%became;
}

my @children;
for my $me (1 .. $clients) {
    my $pid = fork // die "fork: $!";

    if (!$pid) {
        my $became = eval { load($me) } // { "died: $@" => 1 };
        $t->file("became.$me", join '', map { "$became->{$_} $_\n" } keys %$became);
        POSIX::_exit(0);
    }
    push @children, $pid;
}

sleep 1;
for my $round (1 .. $rounds) {
    for my $i (0, 1) {
        is($engines[$i]->stop, 0, "round $round: engine $i drains and ends");
        sleep 0.3;
        $engines[$i]->start;
        ok(wait_until(20, sub { $engines[$i]->state->{running} }), "round $round: and works again");
    }
}
$t->file('stop', '');
waitpid $_, 0 for @children;

my %became;
for my $line (map { split /\n/, slurp($t->dir . "/became.$_") } 1 .. $clients) {
    my ($n, $how) = split / /, $line, 2;
    $became{$how} += $n;
}
my $answered = delete $became{answered} // 0;
diag("$answered answered, while " . 2 * $rounds . ' engines were restarted');
ok($answered > 20 * $rounds, 'answered all the time');
is_deeply(\%became, {}, 'nothing was refused, lost, broken or wrong');

$t->finish;
