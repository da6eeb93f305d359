package testbed

import "context"
import "io"

func (c *Cluster) Demo(ctx context.Context, out io.Writer) error { return nil }
