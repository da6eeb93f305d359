package crdt

func tie(p *paths, old, now *node, apiVersion, kind string) {}
