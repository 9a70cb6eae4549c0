package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// electionTimeout is the service's, for a cluster of several nodes.
const electionTimeout = 3 * time.Second

// tryPause is between two tries to write while there is no leader.
const tryPause = 5 * time.Millisecond

// leaderKills kills the leader's process again and again, and measures until the next write is accepted by any other
// node.
func (b *bench) leaderKills(ctx context.Context) (err error) {
	dir, remove, err := b.clusterFolder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	c, err := startServiceCluster(ctx, dir, b.images)
	if err != nil {
		return err
	}
	defer c.stop()
	var outages []time.Duration
	for range b.kills {
		leader, err := c.leader(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		c.nodes[leader].kill()
		if err := c.nextWrite(ctx, leader); err != nil {
			return err
		}
		outages = append(outages, time.Since(began))
		b.say("leader killed: %v until the next write", outages[len(outages)-1].Round(time.Millisecond))
		if err := c.launch(leader); err != nil {
			return err
		}
		if err := c.awaitReady(ctx, leader); err != nil {
			return err
		}
	}
	slices.Sort(outages)
	note := fmt.Sprintf("÷ the election timeout; %d kills with SIGKILL", len(outages))
	for _, q := range []struct {
		name string
		at   int
	}{{"p50", (len(outages) - 1) / 2}, {"p99", (len(outages)*99+99)/100 - 1}} {
		b.add(Result{
			Name: "leader killed until the next write, " + q.name, Value: ms(outages[q.at]), Baseline: ms(electionTimeout),
			Unit: "ms", Note: note,
		})
	}
	return nil
}

// nextWrite tries at the nodes that are left until one accepts. Every try is a request of its own.
func (c *serviceCluster) nextWrite(ctx context.Context, but int) error {
	for ctx.Err() == nil {
		for i := range c.nodes {
			if i != but && c.createWithin(i, time.Second) == nil {
				return nil
			}
		}
		time.Sleep(tryPause)
	}
	return ctx.Err()
}
