package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// manyClients is how many clients make up a load.
const manyClients = 64

// rounds is how often each of the compared systems gets its turn; the best counts for each, so that what the machine
// does besides falls on none.
const rounds = 2

// clusterFolder is a folder of this run for clusters, on the filesystem of --dir.
func (b *bench) clusterFolder() (dir string, remove func() error, err error) {
	if dir, err = os.MkdirTemp(b.dir, "sfbench-cluster-"); err != nil {
		return "", nil, err
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// intents measures accepted intents against bare hashicorp/raft, and etcd beside them.
func (b *bench) intents(ctx context.Context) (err error) {
	dir, remove, err := b.clusterFolder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	size, err := entrySize()
	if err != nil {
		return err
	}
	bare, bareOne, err := b.bareLoads(filepath.Join(dir, "bare"), size)
	if err != nil {
		return fmt.Errorf("bare raft: %w", err)
	}
	ours, err := b.serviceLoads(ctx, filepath.Join(dir, "service"))
	if err != nil {
		return fmt.Errorf("the service: %w", err)
	}
	note := fmt.Sprintf("÷ bare hashicorp/raft and raft-boltdb, entries of %d bytes; TLS, keys, dedup, validation", size)
	b.addRate("accepted intents, 64 clients, leader", ours.leader.PerSecond, bare.PerSecond, 0.6, note)
	b.addRate("accepted intents, 64 clients, follower", ours.follower.PerSecond, bare.PerSecond, 0.45, note)
	b.add(Result{
		Name: "accepted intent, 1 client, median", Value: ms(ours.one.Median), Baseline: ms(bareOne.Median), Aim: 1.8,
		Unit: "ms", Note: "÷ bare, 1 client",
	})
	etcd, err := b.etcdLoad(ctx, filepath.Join(dir, "etcd"), size)
	if errors.Is(err, errNoEtcd) {
		b.say("not compared with etcd: %v", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	b.addRate("accepted intents, 64 clients, leader ÷ etcd", ours.leader.PerSecond, etcd.PerSecond, 1,
		"÷ create-if-absent of as many bytes at etcd's leader, plain HTTP/2, no authentication")
	return nil
}

// addRate adds a figure of which more is better.
func (b *bench) addRate(name string, value, baseline, aim float64, note string) {
	b.add(Result{Name: name, Value: value, Baseline: baseline, Aim: aim, AtLeast: true, Unit: "/s", Note: note})
}

func better(a, b loadResult) loadResult {
	if b.PerSecond > a.PerSecond {
		return b
	}
	return a
}

func (b *bench) bareLoads(dir string, size int) (many, one loadResult, err error) {
	c, err := startBare(dir, size)
	if err != nil {
		return many, one, err
	}
	defer c.stop()
	for range rounds {
		r, err := c.run(manyClients, b.seconds)
		if err != nil {
			return many, one, err
		}
		many = better(many, r)
		if r, err = c.run(1, b.seconds); err != nil {
			return many, one, err
		}
		one = better(one, r)
	}
	return many, one, nil
}

// serviceResults are the loads that the service was put under.
type serviceResults struct{ leader, follower, one loadResult }

func (b *bench) serviceLoads(ctx context.Context, dir string) (res serviceResults, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return res, err
	}
	c, err := startServiceCluster(ctx, dir, b.images)
	if err != nil {
		return res, err
	}
	defer c.stop()
	if b.profile {
		b.say("profile: %v", c.pids())
	}
	for range rounds {
		leader, err := c.leader(ctx)
		if err != nil {
			return res, err
		}
		for _, l := range []struct {
			into    *loadResult
			clients int
			node    int
		}{{&res.leader, manyClients, leader}, {&res.follower, manyClients, (leader + 1) % 3}, {&res.one, 1, leader}} {
			r := load(l.clients, b.duration(), func(int) error { return c.create(l.node) })
			if r.err() != nil {
				return res, r.err()
			}
			b.say("%d clients at node %d: %.0f/s, median %v", l.clients, l.node, r.PerSecond, r.Median)
			*l.into = better(*l.into, r)
		}
	}
	return res, nil
}

func (b *bench) duration() time.Duration { return time.Duration(b.seconds) * time.Second }

func (c *serviceCluster) pids() (out []int) {
	for _, n := range c.nodes {
		out = append(out, n.cmd.Process.Pid)
	}
	return out
}

func (b *bench) etcdLoad(ctx context.Context, dir string, size int) (res loadResult, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return res, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	e, err := startEtcd(ctx, dir, manyClients)
	if err != nil {
		return res, err
	}
	defer e.stop()
	leader, err := e.leader()
	if err != nil {
		return res, err
	}
	value := make([]byte, size)
	for range rounds {
		r := load(manyClients, b.duration(), func(client int) error { return e.createIfAbsent(leader, client, value) })
		if r.err() != nil {
			return res, r.err()
		}
		res = better(res, r)
	}
	return res, nil
}
