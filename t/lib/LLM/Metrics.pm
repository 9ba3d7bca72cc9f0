package LLM::Metrics;

# Metrics in Prometheus's text format, read as strictly as promtool reads them.
#
#   my $m = LLM::Metrics->new($text);
#   $m->wrong                       what is wrong with it: texts, none if nothing
#   $m->value('llm_requests_total', outcome => 'ok')      undef: there is no such line
#   $m->sum('llm_prompt_tokens_total')                    over all labels
#   $m->lines('llm_engine_up')                            their number

use strict;
use warnings;

my $name = qr/[a-zA-Z_:][a-zA-Z0-9_:]*/;
my $label = qr/[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"/;

sub new {
    my ($class, $text) = @_;
    my $self = bless { value => {}, wrong => [] }, $class;

    $self->_read($text);
    $self->_check_histograms;
    return $self;
}

sub wrong { return @{ $_[0]{wrong} } }

sub _key {
    my ($metric, %labels) = @_;

    s/([\\"])/\\$1/g, s/\n/\\n/g for values %labels;
    return join ',', $metric, map { "$_=\"$labels{$_}\"" } sort keys %labels;
}

sub value {
    my ($self, $metric, %labels) = @_;

    return $self->{value}{ _key($metric, %labels) };
}

sub lines {
    my ($self, $metric) = @_;

    return scalar grep { /^$metric(?:,|$)/ } keys %{ $self->{value} };
}

sub sum {
    my ($self, $metric) = @_;
    my $sum = 0;

    $sum += $self->{value}{$_} for grep { /^$metric(?:,|$)/ } keys %{ $self->{value} };
    return $sum;
}

sub _read {
    my ($self, $text) = @_;
    my ($family, %seen) = ('');

    push @{ $self->{wrong} }, 'no line feed at the end' if $text !~ /\n\z/;
    for my $line (split /\n/, $text) {
        my $why = '';

        if ($line =~ /^# HELP ($name) \S/) {
            $why = 'a second HELP' if $seen{$1}++;
            $family = $1;
        } elsif ($line =~ /^# TYPE ($name) (counter|gauge|histogram)$/) {
            $why = 'TYPE without HELP' if $1 ne $family;
            $self->{type}{$1} = $2;
            $why = 'the name of a counter ends in _total' if ($2 eq 'counter') != ($1 =~ /_total$/);
        } elsif ($line =~ /^($name)(?:\{($label(?:,$label)*)\})? (-?\d+(?:\.\d+)?)$/) {
            my ($metric, $value) = ($1, $3);
            my %labels = ($2 // '') =~ /(\w+)="((?:[^"\\]|\\.)*)"/g;
            my $of = ($self->{type}{$family} // '') eq 'histogram'
                ? $metric =~ s/_(?:bucket|sum|count)$//r : $metric;
            s/\\(.)/$1 eq 'n' ? "\n" : $1/ge for values %labels;
            my $key = _key($metric, %labels);

            $why = "not of the family $family" if $of ne $family;
            $why = 'twice' if exists $self->{value}{$key};
            $self->{value}{$key} = $value;
        } else {
            $why = 'not understood';
        }
        push @{ $self->{wrong} }, "$why: $line" if $why;
    }
}

sub _check_histograms {
    my ($self) = @_;

    for my $metric (grep { $self->{type}{$_} eq 'histogram' } keys %{ $self->{type} }) {
        my @buckets = map { /^${metric}_bucket,le="([^"]+)"$/ ? $1 : () } keys %{ $self->{value} };
        my @sorted = sort { ($a eq '+Inf') <=> ($b eq '+Inf') || $a <=> $b } @buckets;
        my $last = 0;

        push @{ $self->{wrong} }, "$metric: no +Inf" if !@sorted || $sorted[-1] ne '+Inf';
        for my $le (@sorted) {
            my $n = $self->value("${metric}_bucket", le => $le);
            push @{ $self->{wrong} }, "$metric: $le is less than before" if $n < $last;
            $last = $n;
        }
        push @{ $self->{wrong} }, "$metric: _count is not +Inf's"
            if $last != ($self->value("${metric}_count") // -1);
    }
}

1;
