/* The device that tests of real backends run on: what $LLM_DEVICE names, else the CPU. */

#ifndef T_UNIT_DEVICE_H
#define T_UNIT_DEVICE_H

#include "engine/backend/device.h"

#include <stdio.h>
#include <stdlib.h>

static const char *build_dir(void)
{
    const char *build = getenv("LLM_BUILD");

    return build != NULL ? build : "build";
}

static struct llm_device test_device(void)
{
    const char *name = getenv("LLM_DEVICE");
    struct llm_device device;
    struct llm_error why;

    if (llm_device_open(name != NULL ? name : "cpu", build_dir(), &device, &why) != LLM_OK) {
        printf("Bail out! %s\n", why.text);
        exit(1);
    }
    return device;
}

#endif
