#!/usr/bin/perl

# The style of doc/design.md, sections 2 and 11, as far as a script can see it.

use strict;
use warnings;

use File::Find;
use Test::More;

binmode(Test::More->builder->$_, ':utf8') for qw(output failure_output todo_output);

my @files;

find({
    no_chdir => 1,
    preprocess => sub { grep { !/^(?:\.git|build.*|__pycache__)$/ } @_ },
    wanted => sub { push @files, s{^\./}{}r if -f },
}, '.');

# texts of others, kept as they are
@files = grep { !m{^(?:t/data|t/golden|models)/} } sort @files;
my @c = grep { /\.[ch]$/ } @files;
my @text = grep { /\.(?:[ch]|pm|pl|t|py|md|conf|service)$/ || m{^(?:Makefile|CHANGES|config)$} }
    @files;
my %lines;

for my $file (@text) {
    open(my $f, '<:encoding(UTF-8)', $file) or die "$file: $!";
    $lines{$file} = [ map { chomp; $_ } <$f> ];
}

# Calls back with file, line number, line; what it returns true for is wrong.
sub none {
    my ($name, $files, $wrong) = @_;
    my @found;

    for my $file (@$files) {
        my $n = 0;
        for my $line (@{ $lines{$file} }) {
            $n++;
            my $why = $wrong->($file, $line, $n);
            push @found, "$file:$n: " . ($why eq 1 ? $line : $why) if $why;
        }
    }
    ok(!@found, $name) or diag(join "\n", @found > 30 ? (@found[ 0 .. 29 ], '…') : @found);
}

# --- white space ---

my @spaced = grep { !/^Makefile$/ } @text;
none('no tabs', \@spaced, sub { $_[1] =~ /\t/ });
none('no trailing space, no carriage return', \@text, sub { $_[1] =~ /[ \t\r]$/ });
none('100 columns, 80 in ngx_module', \@c,
    sub { length $_[1] > ($_[0] =~ m{^ngx_module/} ? 80 : 100) });

# --- arrows: what a room may include stands in the Makefile, as what it may link ---

my %needs = (ngx_module => [qw(ipc)], cmd => [qw(serve)]);
for (@{ $lines{Makefile} }) {
    $needs{$1} = [ split ' ', $2 ] if /^NEEDS_(\w+) =(.*)/;
}
push @{ $needs{cmd} }, @{ $needs{serve} };

sub room {
    my ($path) = @_;

    return $1 if $path =~ m{^engine/(\w+)/};
    return $1 if $path =~ m{^(kernels|ngx_module|t)/};
    return '';
}

# what a backend must do may be known where no backend is linked
my %interface = ('cache engine/backend/backend.h' => 1);

none('includes follow the arrows', [ grep { !m{^t/} } @c ], sub {
    my ($file, $line) = @_;
    my ($included) = $line =~ /^\s*#\s*include\s+"([^"]+)"/ or return 0;
    my ($from, $to) = (room($file), room($included));

    return 0 if $interface{"$from $included"};
    return $to ne $from && !grep { $_ eq $to } @{ $needs{$from} // [] };
});
none('includes are relative to the root', \@c, sub {
    my ($file, $line) = @_;
    my ($included) = $line =~ /^\s*#\s*include\s+"([^"]+)"/ or return 0;

    return !-f $included;
});
none('only ngx_module knows nginx', [ grep { !m{^ngx_module/} } @c ],
    sub { $_[1] =~ /^\s*#\s*include\s+<ngx_/ });

# --- the language ---

none('header guards name their file', [ grep { /^(?:engine|kernels)\/.*\.h$/ } @c ], sub {
    my ($file, $line) = @_;
    my ($guard) = $line =~ /^#ifndef (LLM_\w+_H)$/ or return 0;
    my $name = $file =~ s{^engine/}{}r;

    return $guard ne 'LLM_' . uc($name =~ s{[/.]}{_}gr);
});
none('no typedef of a pointer', [ grep { !m{^ngx_module/} } @c ],
    sub { $_[1] =~ /^\s*typedef\s[^(]*\*\s*\w+\s*;/ });
none('no call without a bound', [ grep { !m{^t/} } @c ],
    sub { $_[1] =~ /\b(?:strcpy|strcat|sprintf|vsprintf|gets|alloca|atoi|atol|strtok)\s*\(/ });

my @long = grep { @{ $lines{$_} } > 900 } grep { !/_tables\.c$/ && !m{^t/} } @c;
ok(!@long, 'a file holds one concept: no more than 900 lines') or diag(join "\n", @long);

# --- the words ---

none('nothing is left to do, nothing is said of anything but the project', \@text, sub {
    my ($file, $line) = @_;

    return 0 if $file eq 't/style.t';
    return $line =~ m{\b(?:TODO|FIXME|XXX)\b|(?<![\w.])/work/|/tmp/build-|\bissue \d};
});

# --- nginx: what the module has and what its reference says are the same ---

my $module = join "\n", map { @{ $lines{$_} } } grep { m{^ngx_module/} } @c;
my $reference = join "\n", @{ $lines{'doc/nginx.md'} };
my $titles = join ' ', $reference =~ /^### (.*)/mg;

sub same {
    my ($name, $have, $told) = @_;
    my %count;

    $count{$_} |= 1 for @$have;
    $count{$_} |= 2 for @$told;
    my @differ = map { $count{$_} == 1 ? "$_ is not documented" : "$_ does not exist" }
        grep { $count{$_} != 3 } sort keys %count;
    ok(@$have && !@differ, $name) or diag(join "\n", @differ);
}

same('directives', [ $module =~ /^    \{ ngx_string\("(llm_\w+)"\),\n      NGX_/mg ],
    [ $titles =~ /(llm_\w+)/g ]);
same('variables',
    [ map { /"(llm_\w+)"/g } @{ $lines{'ngx_module/ngx_http_llm_variables.c'} } ],
    [ $reference =~ /^\| `\$(llm_\w+)`/mg ]);

# --- mutations: each breaks a line that is there ---

my $unfit = `t/mutate -n 2>&1`;
ok($? == 0, 't/mutations fits the tree') or diag($unfit);

done_testing();
